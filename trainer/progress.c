/* Owns how long work is shown. */
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE
#include "trainer/progress.h"

#include "kernels/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BAR_CELLS = 20, LINE_BYTES = 400 };
/* Seconds between two drawings of a bar; between plain lines, at first and later. */
static const double DRAW_SECONDS = 0.1, FIRST_SECONDS = 10, LINE_SECONDS = 60;

struct Progress {
    char *what, *unit, *note;
    double begun, done, total; /* begun: what was done before */
    double start, shown;       /* seconds of the clock */
    bool live;                 /* stderr is a terminal */
    bool drawn;                /* the bar stands on the terminal's last line */
};

/* "1:02:03", "2:03", "0:03" */
static void format_seconds(double seconds, char *text, size_t size) {
    long long s = seconds < 1e9 ? (long long)(seconds + 0.5) : 1000000000;
    if (s >= 3600)
        snprintf(text, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, size, "%lld:%02lld", s / 60, s % 60);
}

/* "12.3 steps/s"; below one a second, "4.56 s each". */
static int format_rate(const Progress *p, double seconds, char *text, size_t size) {
    double n = p->done - p->begun;
    if (n <= 0 || seconds <= 0) return 0;
    if (n >= 1000 * seconds) return snprintf(text, size, ", %.0f %s/s", n / seconds, p->unit);
    if (n >= seconds) return snprintf(text, size, ", %.3g %s/s", n / seconds, p->unit);
    return snprintf(text, size, ", %.3g s each", seconds / n);
}

static void format_left(const Progress *p, double seconds, char *text, size_t size) {
    char left[32];
    double n = p->done - p->begun;
    if (n <= 0 || p->total <= p->done) return;
    format_seconds(seconds * (p->total - p->done) / n, left, sizeof left);
    snprintf(text, size, ", %s left", left);
}

/* Appends to a line of LINE_BYTES. */
static char *end_of(char *line) { return line + strlen(line); }
static size_t room_of(const char *line) { return LINE_BYTES - strlen(line); }

static void format_state(const Progress *p, double now, char *line) {
    double seconds = now - p->start;
    snprintf(end_of(line), room_of(line), "%.15g", p->done);
    if (p->total > 0) snprintf(end_of(line), room_of(line), "/%.15g", p->total);
    snprintf(end_of(line), room_of(line), " %s", p->unit);
    format_rate(p, seconds, end_of(line), room_of(line));
    format_left(p, seconds, end_of(line), room_of(line));
    if (p->note) snprintf(end_of(line), room_of(line), ", %s", p->note);
}

static void clear_bar(Progress *p) {
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}

/* "training [####......] 42% ", in at most `room` characters: the bar shrinks, or goes. */
static void format_bar(const Progress *p, int room, char *line) {
    enum { LEAST_CELLS = 5 };
    char cells[BAR_CELLS + 1] = "";
    double share = p->total > 0 ? MIN(MAX(p->done / p->total, 0), 1) : 0;
    int n = MIN(BAR_CELLS, room - (int)strlen(p->what) - (int)strlen(" [] 42% "));
    for (int i = 0; i < n; i++) cells[i] = i < (int)(share * n) ? '#' : '.';
    if (p->total > 0 && n >= LEAST_CELLS)
        snprintf(line, LINE_BYTES, "%s [%s] %2.0f%% ", p->what, cells, 100 * share);
    else if (room > (int)strlen(p->what))
        snprintf(line, LINE_BYTES, "%s ", p->what);
}

static void draw_bar(Progress *p, double now) {
    char line[LINE_BYTES] = "", state[LINE_BYTES] = "";
    struct winsize window;
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) || !window.ws_col ? 80 : window.ws_col;
    format_state(p, now, state);
    format_bar(p, columns - 1 - (int)strlen(state), line);
    snprintf(end_of(line), room_of(line), "%s", state);
    fprintf(stderr, "\r%.*s\033[K", columns - 1, line);
    fflush(stderr);
    p->drawn = true;
}

static void show(Progress *p, double now) {
    char line[LINE_BYTES] = "";
    p->shown = now;
    if (p->live) {
        draw_bar(p, now);
        return;
    }
    format_state(p, now, line);
    fprintf(stderr, "%s: %s\n", p->what, line);
}

Progress *progress_open(const char *what, const char *unit, double done, double total) {
    const char *term = getenv("TERM");
    if (comm_world_rank()) return NULL;
    Progress *p = xcalloc(1, sizeof *p);
    *p = (Progress){.what = xstrdup(what),
                    .unit = xstrdup(unit),
                    .begun = done,
                    .done = done,
                    .total = total,
                    .start = now_seconds(),
                    .live = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb"))};
    p->shown = p->start;
    if (p->live) draw_bar(p, p->start);
    return p;
}

static bool is_due(const Progress *p, double now) {
    double since_start = now - p->start, since_shown = now - p->shown;
    if (p->live) return since_shown >= DRAW_SECONDS;
    return since_shown >= (since_start < 2 * LINE_SECONDS ? FIRST_SECONDS : LINE_SECONDS);
}

void progress_set(Progress *p, double done, const char *note) {
    double now = now_seconds();
    if (!p) return;
    p->done = done;
    free(p->note);
    p->note = note ? xstrdup(note) : NULL;
    if (is_due(p, now)) show(p, now);
}

void progress_say(Progress *p, const char *format, ...) {
    bool drawn = p && p->drawn;
    va_list args;
    if (p) clear_bar(p);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    if (drawn) draw_bar(p, now_seconds());
}

void progress_close(Progress *p) {
    if (!p) return;
    double seconds = now_seconds() - p->start;
    char rate[LINE_BYTES] = "", time[32];
    clear_bar(p);
    format_rate(p, seconds, rate, sizeof rate);
    if (seconds < 60)
        snprintf(time, sizeof time, "%.1f s", seconds);
    else
        format_seconds(seconds, time, sizeof time);
    fprintf(stderr, "%s: %.15g %s in %s%s\n", p->what, p->done, p->unit, time, rate);
    free(p->what);
    free(p->unit);
    free(p->note);
    free(p);
}
