%%% The pool against its model, by random sequences of calls. PROP_RUNS sets how many.
-module(pool_prop_SUITE).

-export([all/0, suite/0]).
-export([the_pool_behaves_as_its_model/1]).

-define(RUNS, "100").

suite() -> [{timetrap, {minutes, 5}}].

all() -> [the_pool_behaves_as_its_model].

the_pool_behaves_as_its_model(_Config) ->
    %% Calls in an order that nobody thought of are what a pool in the field meets.
    Runs = list_to_integer(os:getenv("PROP_RUNS", ?RUNS)),
    _ = ct:timetrap({seconds, 120 + 3 * Runs}),
    Peers = [mesh_peer:start() || _ <- lists:seq(1, 3)],
    Refusing = mesh_peer:start(["--mode", "refuse"]),
    Surroundings = #{peers => Peers, refusing => Refusing, silent => mesh_peer:silent()},
    Property = pool_model:prop_pool_behaves_as_its_model(Surroundings),
    Output = fun(Format, Arguments) -> ct:log(Format, Arguments) end,
    Options = [{numtests, Runs}, {max_size, 30}, {max_shrinks, 60}, {on_output, Output}],
    %% The log has the counterexample.
    true = proper:quickcheck(Property, Options),
    lists:foreach(fun mesh_peer:stop/1, [Refusing | pool_model:peers(Surroundings)]).
