"""One small adapter per model family: samples in, forward() arguments out."""
