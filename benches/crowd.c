/*
 * crowd N [WORDS...]: N idle processes, until standard input ends.
 *
 * WORDS are ignored: they give the processes a command line of usual length.
 * The children die with this program however it dies, because the kernel is
 * told so; when input ends they are killed by PID and reaped.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 0, made = 0, status = 0;
	pid_t *children = calloc((size_t)count + 1, sizeof *children);
	pid_t parent = getpid();
	char byte;

	if (count <= 0 || !children) {
		fputs("usage: crowd N [WORDS...]\n", stderr);
		return 2;
	}
	while (made < count) {
		pid_t pid = fork();

		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			/* The parent may have died before the line above. */
			while (getppid() == parent)
				pause();
			_exit(0);
		}
		if (pid < 0) {
			perror("crowd: fork");
			status = 1;
			break;
		}
		children[made++] = pid;
	}
	if (status == 0) {
		puts("ready");
		fflush(stdout);
		while (read(STDIN_FILENO, &byte, 1) > 0)
			;
	}
	for (int i = 0; i < made; i++)
		kill(children[i], SIGKILL);
	for (int i = 0; i < made; i++)
		waitpid(children[i], NULL, 0);
	return status;
}
