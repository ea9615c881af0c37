"""Head-pose networks: what must be known of one, how it is loaded, and how its description is tested."""
