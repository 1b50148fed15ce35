"""Request, one read view and now become Facts: the only place that looks things up."""
