"""What people touch: the command `l2g`, video in and out, drawing."""
