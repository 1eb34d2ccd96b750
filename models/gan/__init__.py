"""What the adversarial families share: losses, penalties, augmentation, layers, bodies and the two players' turns."""
