"""The jobs service: accepts, queues, schedules and follows fine-tuning jobs."""
