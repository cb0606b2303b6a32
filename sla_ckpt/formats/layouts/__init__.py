"""Where other projects keep SLA projections: one per layer, inside the model's weights."""
