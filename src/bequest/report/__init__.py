"""What people see of a run: metrics file, progress, tables. Observers; none can change a bit of training."""
