"""What a search came to: tables, tickets, models and what each cost."""
