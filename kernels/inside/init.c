/* The first process of a kernel: starts the command, buries orphans, hands on signals, ends everything together.
 *
 *   init [-g SECONDS] [--] COMMAND [ARGUMENT...]
 *
 * SIGTERM, SIGINT, SIGQUIT and SIGHUP go to every process of the container, so that a program under a
 * shell hears of its end as well; other signals go to the command. When the command has ended, what is
 * left gets SIGTERM. If the end was asked for, whoever asked decides how long that may take;
 * otherwise SIGKILL follows after SECONDS (default 2). The exit status is the command's, 128 + n after
 * signal n; 127 when there is no such command, 126 when it cannot be run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const int faults[] = {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SIGABRT, SIGSYS};
static pid_t command;
static int status;  /* exit status of the command, once it has one */
static int ended;   /* the command has ended */
static int asked;   /* somebody asked for the end */

static void tell(int number) {
    /* As pid 1, -1 means everything in the container but ourselves. */
    if (getpid() == 1)
        kill(-1, number);
    else if (kill(-command, number) == -1 && !ended)
        kill(command, number);
}

/* Bury who is dead; 0 when there is no child any more. */
static int bury(void) {
    for (;;) {
        int state;
        pid_t pid = waitpid(-1, &state, WNOHANG);
        if (pid == 0)
            return 1;
        if (pid == -1) {
            if (errno == EINTR)
                continue;
            return 0;
        }
        if (pid == command) {
            ended = 1;
            status = WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
        }
    }
}

static void hand_on(int number) {
    switch (number) {
    case SIGCHLD:
    case SIGTTIN:
    case SIGTTOU:
        return;
    case SIGTERM:
    case SIGINT:
    case SIGQUIT:
    case SIGHUP:
        asked = 1;
        tell(number);
        return;
    default:
        if (!ended)
            kill(command, number);
    }
}

static void start(char **words, const sigset_t *before) {
    command = fork();
    if (command == -1) {
        perror("init: the command cannot be started");
        exit(125);
    }
    if (command != 0) {
        setpgid(command, command); /* the child does it too: whoever comes first */
        return;
    }
    setpgid(0, 0);
    if (isatty(STDIN_FILENO))
        tcsetpgrp(STDIN_FILENO, getpid()); /* SIGTTOU is blocked here */
    sigprocmask(SIG_SETMASK, before, NULL);
    execvp(words[0], words);
    int code = errno == ENOENT ? 127 : 126;
    fprintf(stderr, "init: %s: %s\n", words[0], strerror(errno));
    _exit(code);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* End what the command left behind. */
static void clear_up(const sigset_t *all, double grace) {
    double deadline = now() + grace;
    if (!asked) { /* else they have heard of it, and may be saving their work */
        tell(SIGTERM);
        tell(SIGCONT);
    }
    while (bury()) {
        double left = deadline - now();
        if (!asked && left <= 0)
            break;
        struct timespec wait = {0, 50 * 1000 * 1000};
        int number = sigtimedwait(all, NULL, &wait);
        if (number > 0)
            hand_on(number);
    }
    tell(SIGKILL);
    while (bury() && getpid() == 1)
        usleep(1000);
}

int main(int count, char **words) {
    double grace = 2;
    int option;
    while ((option = getopt(count, words, "+g:")) != -1) {
        if (option != 'g')
            return 125;
        grace = atof(optarg);
    }
    if (optind >= count) {
        fprintf(stderr, "usage: init [-g SECONDS] [--] COMMAND [ARGUMENT...]\n");
        return 125;
    }
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    sigprocmask(SIG_SETMASK, &all, &before);
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    start(words + optind, &before);
    while (!ended) {
        int number = sigwaitinfo(&all, NULL);
        if (number > 0)
            hand_on(number);
        bury();
    }
    clear_up(&all, grace);
    return status;
}
