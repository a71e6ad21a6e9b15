"""What figures share: results (`tables`), looks (`style`), axes and panels over training, and scripts (`export`)."""
