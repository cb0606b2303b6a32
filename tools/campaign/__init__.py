"""The reliability campaign: kills, faults and soaks of real processes; see docs/reliability.md."""
