"""SLA in Triton: forward and backward, bfloat16 and float16 with float32 accumulation."""
