"""Runs on a Ray cluster from outside, by its Jobs API: scenario up, run there, results down."""
