/*
 * The floor: reads every /proc/N/cmdline once and does nothing else.  No
 * program that has to look at all command lines can be faster than this.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[300], line[4096];

	if (!proc)
		return 1;
	while ((entry = readdir(proc))) {
		int fd;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue; /* it ended meanwhile */
		while (read(fd, line, sizeof line) == sizeof line)
			;
		close(fd);
	}
	closedir(proc);
	return 0;
}
