"""What a study brought: metrics, intervals, local against swarm against central, and the report."""
