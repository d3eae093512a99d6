/* Owns the choice between the config's scheduler and the model's. */
#include "trainer/sample_schedule.h"

#include "trainer/diffusion.h"

#include <stdlib.h>
#include <unistd.h>

SchedulerConfig sample_schedule(const Config *c, bool rotary, Schedule *schedule) {
    SchedulerConfig config = SCHEDULER_PUBLISHED;
    ScheduleConfig table = schedule_published(rotary);
    char *path = xprintf("%s/scheduler/scheduler_config.json", c->model.path);
    Error e;
    if (!access(path, F_OK) &&
        (!scheduler_read(&config, path, &e) || !schedule_read(&table, path, &e)))
        die_error(&e);
    if (c->sample.scheduler == SCHEDULER_DDIM) config.kind = SCHEDULER_KIND_DDIM;
    if (c->sample.scheduler == SCHEDULER_DPM) config.kind = SCHEDULER_KIND_DPM;
    if (config.kind == SCHEDULER_KIND_OTHER)
        config_die(c, "sample.scheduler",
                   "%s names none of CogVideoX's schedulers: expected ddim or dpm", path);
    schedule_make(schedule, &table);
    free(path);
    return config;
}
