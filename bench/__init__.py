"""Side-by-side benchmarks. Ratios measured in one run on one machine count; absolute numbers describe that machine only."""
