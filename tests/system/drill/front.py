"""The drill's web front: the real one, `python -m tests.system.drill.front web --fd N`, on the drill's stage."""

from tests.system.drill import stage

stage.prepare()

if __name__ == "__main__":
    from app.cli.main import main

    main()
