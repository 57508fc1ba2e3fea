"""`esxsim reproduce`: the paper's figures and real machines' measurements, claim by claim."""
