/* Being asked to stop (SIGINT, SIGTERM, SIGUSR1): work goes on to a place where it can end well.
 * A second request of the same kind ends the program at once. */
#pragma once

#include <stdbool.h>

void stop_catch(void);
bool stop_asked(void);
