"""What the coordinator decides between two epochs: pure functions of the state of the cluster."""
