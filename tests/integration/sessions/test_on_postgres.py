"""The engine's own tests once more, on PostgreSQL: those whose SQL or locking could differ."""

import asyncio

import pytest
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession

from spawner.sessions.tables import SessionRow
from store.database import Store
from tests.harness.plane import FINISHED, Rig, until
from tests.unit.sessions import (
    test_administration,
    test_agents,
    test_commit,
    test_creation,
    test_faults,
    test_idle_watch,
    test_ledger,
    test_lifecycle,
    test_limits,
    test_offers,
    test_retention,
    test_retries,
    test_scheduling,
    test_service,
    test_wishes,
)

pytestmark = [pytest.mark.integration, pytest.mark.postgres]

test_a_lost_agent_keeps_its_sessions_and_they_say_so = (
    test_agents.test_a_lost_agent_keeps_its_sessions_and_they_say_so
)
test_devices_that_shrink_or_vanish_keep_what_is_held = (
    test_agents.test_devices_that_shrink_or_vanish_keep_what_is_held
)
test_lost_after_ends_sessions_but_their_devices_stay_accounted = (
    test_agents.test_lost_after_ends_sessions_but_their_devices_stay_accounted
)
test_a_crowd_that_asks_for_one_name_gets_one_session = (
    test_creation.test_a_crowd_that_asks_for_one_name_gets_one_session
)
test_a_broken_device_is_given_to_nobody_and_its_holder_is_told = (
    test_faults.test_a_broken_device_is_given_to_nobody_and_its_holder_is_told
)
test_a_broken_device_stays_in_sight_when_its_holder_is_gone = (
    test_faults.test_a_broken_device_stays_in_sight_when_its_holder_is_gone
)
test_a_device_that_goes_away_stays_accounted_and_is_told_of = (
    test_faults.test_a_device_that_goes_away_stays_accounted_and_is_told_of
)
test_quotas_hold_sessions_in_the_queue = test_creation.test_quotas_hold_sessions_in_the_queue
test_what_the_hub_asks_for = test_creation.test_what_the_hub_asks_for
test_devices_follow_what_is_reported_and_what_is_held = (
    test_ledger.test_devices_follow_what_is_reported_and_what_is_held
)
test_parallel_writers_never_overdraw_a_device = (
    test_ledger.test_parallel_writers_never_overdraw_a_device
)
test_repair_mends_drift_both_ways_and_frees_what_nobody_holds = (
    test_ledger.test_repair_mends_drift_both_ways_and_frees_what_nobody_holds
)
test_the_database_itself_refuses_to_be_overdrawn = (
    test_ledger.test_the_database_itself_refuses_to_be_overdrawn
)
test_a_batch_session_ends_with_its_command = (
    test_lifecycle.test_a_batch_session_ends_with_its_command
)
test_a_kernel_that_cannot_be_created_is_tried_again_and_then_given_up = (
    test_lifecycle.test_a_kernel_that_cannot_be_created_is_tried_again_and_then_given_up
)
test_a_session_runs_and_ends = test_lifecycle.test_a_session_runs_and_ends
test_progress_is_replayed_and_goes_on = test_lifecycle.test_progress_is_replayed_and_goes_on
test_check_presets_in_the_shape_of_backend_ai = (
    test_offers.test_check_presets_in_the_shape_of_backend_ai
)
test_metrics = test_offers.test_metrics
test_spawn_options = test_offers.test_spawn_options
test_a_plan_that_is_applied_twice_places_once = (
    test_scheduling.test_a_plan_that_is_applied_twice_places_once
)
test_one_refused_placement_takes_no_other_with_it = (
    test_scheduling.test_one_refused_placement_takes_no_other_with_it
)
test_lists_are_filtered_paged_and_newest_first = (
    test_service.test_lists_are_filtered_paged_and_newest_first
)
test_rename = test_service.test_rename
test_a_record_from_its_making_to_its_end = (
    test_administration.test_a_record_from_its_making_to_its_end
)
test_a_user_from_the_making_to_the_end = test_administration.test_a_user_from_the_making_to_the_end
test_a_user_who_ran_something_is_not_deleted = (
    test_administration.test_a_user_who_ran_something_is_not_deleted
)
test_a_device_that_was_masked_meanwhile = test_commit.test_a_device_that_was_masked_meanwhile
test_a_limit_that_was_lowered_meanwhile = test_commit.test_a_limit_that_was_lowered_meanwhile
test_an_amount_that_was_reserved_meanwhile = test_commit.test_an_amount_that_was_reserved_meanwhile
test_the_newest_of_a_living_session_are_kept = (
    test_retention.test_the_newest_of_a_living_session_are_kept
)
test_only_the_transitions_of_what_ended_long_ago_are_kept = (
    test_retention.test_only_the_transitions_of_what_ended_long_ago_are_kept
)
test_a_policy_holds_sessions_in_the_queue = test_limits.test_a_policy_holds_sessions_in_the_queue
test_a_policy_in_use_stays = test_limits.test_a_policy_in_use_stays
test_a_policy_that_is_not_there_cannot_be_given = (
    test_limits.test_a_policy_that_is_not_there_cannot_be_given
)
test_what_may_wait_and_how_wide_is_checked_at_submission = (
    test_limits.test_what_may_wait_and_how_wide_is_checked_at_submission
)
test_members_of_a_project = test_administration.test_members_of_a_project
test_what_is_used_is_not_deleted = test_administration.test_what_is_used_is_not_deleted
test_there_is_one_default_group = test_administration.test_there_is_one_default_group
test_limits_of_people_projects_and_domains = test_wishes.test_limits_of_people_projects_and_domains
test_wishes_reach_the_scheduler = test_wishes.test_wishes_reach_the_scheduler
test_usage_is_charged_once_to_everybody_and_fades = (
    test_wishes.test_usage_is_charged_once_to_everybody_and_fades
)
test_a_victim_is_put_back_and_keeps_its_place = (
    test_wishes.test_a_victim_is_put_back_and_keeps_its_place
)
test_a_session_ends_at_its_limit = test_wishes.test_a_session_ends_at_its_limit
test_run_times_of_batch_sessions_are_learned = (
    test_wishes.test_run_times_of_batch_sessions_are_learned
)
test_a_failed_attempt_is_followed_by_another_until_one_succeeds = (
    test_retries.test_a_failed_attempt_is_followed_by_another_until_one_succeeds
)
test_a_timeout_counts_the_time_of_one_attempt = (
    test_retries.test_a_timeout_counts_the_time_of_one_attempt
)
test_work_that_was_done_before_it_was_recalled_is_not_done_again = (
    test_retries.test_work_that_was_done_before_it_was_recalled_is_not_done_again
)
test_a_batch_goes_on_elsewhere_and_its_old_run_stays_accounted = (
    test_retries.test_a_batch_goes_on_elsewhere_and_its_old_run_stays_accounted
)
test_a_session_can_come_back_to_the_node_that_was_lost = (
    test_retries.test_a_session_can_come_back_to_the_node_that_was_lost
)
test_an_unhealthy_service_starts_again_where_its_policy_says_so = (
    test_retries.test_an_unhealthy_service_starts_again_where_its_policy_says_so
)
test_system_sessions_are_for_administrators_and_count_nowhere = (
    test_retries.test_system_sessions_are_for_administrators_and_count_nowhere
)
test_a_restart_keeps_node_and_devices = test_retries.test_a_restart_keeps_node_and_devices
test_the_output_of_a_run_before_a_restart_is_kept = (
    test_retries.test_the_output_of_a_run_before_a_restart_is_kept
)
test_who_uses_little_is_ended_and_a_restart_loses_nothing = (
    test_idle_watch.test_who_uses_little_is_ended_and_a_restart_loses_nothing
)
test_a_life_time_is_warned_of_and_extended = (
    test_idle_watch.test_a_life_time_is_warned_of_and_extended
)


async def _somebody_waits(db: AsyncSession) -> bool:
    return bool(await db.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


async def test_what_another_manager_writes_of_a_session_that_is_ended_is_kept(
    plane: Rig, postgres_url: str
) -> None:
    await plane.agent()
    ada = await plane.user()
    detail = await plane.run(ada)
    other = Store(postgres_url)
    await other.open()
    held, release = asyncio.Event(), asyncio.Event()

    async def hold(db: AsyncSession) -> None:
        await db.execute(update(SessionRow).values(status_data={"kept": True}))
        held.set()
        await release.wait()

    holding = asyncio.create_task(other.write(hold))
    await held.wait()
    ending = asyncio.create_task(plane.destroy(ada, detail))
    await until(lambda: plane.store.read(_somebody_waits), bool)
    release.set()
    await asyncio.gather(holding, ending)
    ended = await plane.wait(detail, *FINISHED)
    assert ended.session.status_data["kept"] is True
    await other.close()
