"""ALiBi against RoPE, and the others on request: what a position method costs and what it is good for, in one table."""
