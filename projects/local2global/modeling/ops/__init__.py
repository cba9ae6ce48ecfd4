"""The sampling operator of deformable attention, faster than `grid_sample`."""
