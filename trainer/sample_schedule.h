/* Which scheduler a config asks for, and what the model's folder says about it. */
#pragma once

#include "trainer/config.h"
#include "trainer/scheduler.h"

/* sample.scheduler, or what scheduler/scheduler_config.json of model.path says; a model without
 * that file has the published ones of its kind (schedule_published). Ends the program on mistakes
 * (exit 2). */
SchedulerConfig sample_schedule(const Config *c, bool rotary, Schedule *schedule);
