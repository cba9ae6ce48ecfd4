"""The user interface: the command `l2g`, the class `L2G`, video input and output, drawing."""
