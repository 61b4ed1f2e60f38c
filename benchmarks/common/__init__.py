"""What the experiments share: data, models, training, evaluation, run folders, reports."""
