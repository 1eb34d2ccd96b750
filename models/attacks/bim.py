"""Basic iterative method (Kurakin et al. 2017): projected gradient steps that start at the image."""

from models.attacks.core.descent import Descent


class BIM(Descent):
    name = "bim"
    summary = "Projected gradient steps that start at the image, also called I-FGSM (Kurakin et al. 2017)"
