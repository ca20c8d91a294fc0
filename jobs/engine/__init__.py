"""What runs stages: the stage itself, the scheduler, progress and the disk budget."""
