"""What a person sees after a run: one page, its sections and figures, from what the run left in its folder."""
