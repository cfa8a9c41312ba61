/*
 * side_by_side ROUNDS: how long do these commands take, side by side?
 *
 * Each line of standard input is one command: its name, the exit status it
 * must have, and its arguments, separated by tabs.  Every round runs each
 * command once, so that a disturbance of the machine meets all of them alike.
 * Prints for each command, separated by tabs: name, median, 10th and 90th
 * percentile of the wall-clock time from before its spawn to after its wait,
 * in microseconds.  A command that ends with another status than it must is
 * an error: what was measured would not be what its name says.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

enum { MAX_COMMANDS = 64, MAX_ARGUMENTS = 64 };

struct command {
	char *name;
	int status;
	char *argv[MAX_ARGUMENTS + 1];
	double *times;
};

extern char **environ;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void parse(struct command *command, char *line)
{
	int n = 0;
	char *field, *rest = line;

	command->name = strsep(&rest, "\t");
	field = strsep(&rest, "\t");
	command->status = field ? atoi(field) : 0;
	while (n < MAX_ARGUMENTS && (field = strsep(&rest, "\t")))
		command->argv[n++] = field;
	if (n == 0) {
		fprintf(stderr, "side_by_side: no command: %s\n", line);
		exit(2);
	}
}

static double run(const struct command *command,
		  const posix_spawn_file_actions_t *quiet)
{
	pid_t pid;
	int status, error;
	double begin = now(), end;

	error = posix_spawnp(&pid, command->argv[0], quiet, NULL, command->argv, environ);
	if (error) {
		fprintf(stderr, "side_by_side: %s: %s\n", command->argv[0], strerror(error));
		exit(1);
	}
	waitpid(pid, &status, 0);
	end = now();
	if (!WIFEXITED(status) || WEXITSTATUS(status) != command->status) {
		fprintf(stderr, "side_by_side: %s: wait status %#x, expected exit status %d\n",
			command->name, (unsigned)status, command->status);
		exit(1);
	}
	return end - begin;
}

int main(int argc, char **argv)
{
	static struct command commands[MAX_COMMANDS];
	int rounds = argc > 1 ? atoi(argv[1]) : 0, count = 0;
	posix_spawn_file_actions_t quiet;
	char *line = NULL;
	size_t size = 0;
	ssize_t length;

	if (rounds < 1) {
		fputs("usage: side_by_side ROUNDS <COMMANDS\n", stderr);
		return 2;
	}
	while (count < MAX_COMMANDS && (length = getline(&line, &size, stdin)) > 0) {
		if (line[length - 1] == '\n')
			line[length - 1] = '\0';
		parse(&commands[count], line);
		commands[count++].times = calloc((size_t)rounds, sizeof(double));
		line = NULL; /* the command keeps it */
		size = 0;
	}
	posix_spawn_file_actions_init(&quiet);
	posix_spawn_file_actions_addopen(&quiet, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);

	for (int i = 0; i < count; i++)
		run(&commands[i], &quiet); /* not counted: fills the page cache */
	for (int round = 0; round < rounds; round++)
		for (int i = 0; i < count; i++)
			commands[i].times[round] = run(&commands[i], &quiet);
	for (int i = 0; i < count; i++) {
		double *t = commands[i].times;

		qsort(t, (size_t)rounds, sizeof *t, ascending);
		printf("%s\t%.1f\t%.1f\t%.1f\n", commands[i].name, t[rounds / 2],
		       t[rounds / 10], t[rounds - 1 - rounds / 10]);
	}
	return 0;
}
