"""Many runs that answer one question: sweeps, comparisons, and the search for capacity."""
