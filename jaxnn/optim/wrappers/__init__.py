"""What goes around any optimizer: averages, cautious updates, sharpness-aware steps, and the like."""
