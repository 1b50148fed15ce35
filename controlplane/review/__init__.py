"""Reviews: what the records together say of a tenant, for a person to look at."""
