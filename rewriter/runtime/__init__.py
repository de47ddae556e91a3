"""What stands in for a network's `forward`: components, optimise and restore, reports."""
