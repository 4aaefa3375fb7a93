"""Networks: builders, weights, imported and exported models, frozen teachers."""
