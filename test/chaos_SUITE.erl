%%% A pool in a storm of faults: `make chaos', and its short form. SEED repeats the plan of a run,
%%% which prints it; CHAOS_MINUTES makes the storm longer.
-module(chaos_SUITE).

-export([all/0, suite/0, a_pool_keeps_its_promises_through_a_storm/1]).

%% The short form: an act of faults, one in which the server is killed, too, and a short one among
%% strangers.
-define(ACT_MS, 6_000).
-define(STRANGERS_MS, 2_000).
-define(CALM_MS, 1_000).

suite() -> [{timetrap, {minutes, 3}}].

all() -> [a_pool_keeps_its_promises_through_a_storm].

a_pool_keeps_its_promises_through_a_storm(Config) ->
    %% Faults come together in the field, and what each suite shows of one of them alone may not
    %% hold then. What is promised is checked after each act, from outside.
    Minutes = list_to_integer(os:getenv("CHAOS_MINUTES", "0")),
    _ = ct:timetrap({minutes, 3 + 3 * Minutes}),
    Seed = list_to_integer(os:getenv("SEED", integer_to_list(erlang:system_time(second)))),
    _ = rand:seed(exsss, Seed),
    ct:pal("SEED=~b", [Seed]),
    mesh_chaos:with(proplists:get_value(priv_dir, Config), fun(Chaos) ->
        Acts = max(1, Minutes * 60_000 div (2 * ?ACT_MS + ?STRANGERS_MS)),
        Kinds = [{calm, ?CALM_MS} | lists:append(lists:duplicate(Acts, acts()))],
        lists:foldl(fun mesh_chaos:act/2, Chaos, Kinds)
    end).

acts() -> [{faults, ?ACT_MS}, {deaths, ?ACT_MS}, {strangers, ?STRANGERS_MS}].
