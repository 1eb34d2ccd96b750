"""Basic iterative method (Kurakin et al. 2017)."""

from models.attacks.core.descent import Descent


class BIM(Descent):
    name = "bim"
    summary = "Repeated gradient steps from the image itself, also called I-FGSM (Kurakin et al. 2017)"
