"""One table per `model_type`."""
