"""What users are told of the arguments of a call: expected, got, remedy, the argument named first."""
