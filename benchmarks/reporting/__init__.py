"""One report of all studies and benchmarks: what to run, what it says of the papers' claims, and the page."""
