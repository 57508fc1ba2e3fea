"""Looking on while a run goes on: for its folder, Prometheus, and the terminal."""
