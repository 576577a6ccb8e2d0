"""What a program says about itself: log lines, metrics, health. It is told, it does not ask."""
