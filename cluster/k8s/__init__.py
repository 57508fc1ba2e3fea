"""Runs on Kubernetes: a scenario file becomes objects for KubeRay; a run is watched and fetched."""
