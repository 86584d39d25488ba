"""The recipe: its schema, how it is loaded, and the DeepSpeed JSON it drives. Never imports torch."""
