"""`l2g serve`: a page on which people drop a video, or choose a camera, and watch the masks."""
