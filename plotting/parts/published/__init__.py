"""What others published, for figures that lay the results beside it: the study's numbers, and benchmarks of Pythia."""
