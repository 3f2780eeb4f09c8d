from unison.cli import main

main()
