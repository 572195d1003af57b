%%% A line with faults between pool and peer: native/mesh/examples/relay as a separate OS process.
-module(mesh_relay).

-export([start/2, start/3, stop/1, address/1]).
-export([set/3, clear/1, rebind/1, later/3, stats/1, settled/1]).

%% A relay to the server at a port of this machine. `Seed' decides which packets are struck.
start(ServerPort, Seed) -> start(ServerPort, Seed, {127, 0, 0, 1}).

start(ServerPort, Seed, ServerIp) ->
    Server = io_lib:format("~s:~b", [inet:ntoa(ServerIp), ServerPort]),
    Args = ["--server", lists:flatten(Server), "--seed", integer_to_list(Seed)],
    mesh_program:start(mesh_program:relay(), Args).

stop(Relay) -> mesh_program:stop(Relay).

%% Where clients send to.
address(Relay) -> {{127, 0, 0, 1}, mesh_program:port(Relay)}.

%% Changes the faults of `up', `down' or `both': `#{loss => 50, delay => 20}'. Chances are in
%% thousandths, times in milliseconds; what is not named stays.
set(Relay, Way, Faults) ->
    ok = mesh_program:command(Relay, words(Way, Faults)).

clear(Relay) -> ok = mesh_program:command(Relay, "clear").

%% Every client gets another port towards the server.
rebind(Relay) ->
    {rebound, Count} = mesh_program:command(Relay, "rebind"),
    Count.

%% The same `Ms' later: `{set, Way, Faults}', `clear' or `rebind'.
later(Relay, Ms, What) ->
    Words =
        case What of
            {set, Way, Faults} -> words(Way, Faults);
            Word -> atom_to_list(Word)
        end,
    ok = mesh_program:command(Relay, io_lib:format("at ~b ~s", [Ms, Words])).

stats(Relay) ->
    {stats, Stats} = mesh_program:command(Relay, "stats"),
    Stats.

%% The same once no packet is on its way.
settled(Relay) ->
    mesh_wait:eventually(0, fun() -> maps:get(queued, stats(Relay)) end),
    stats(Relay).

words(Way, Faults) ->
    Named = [io_lib:format(" ~s=~p", [Name, Value]) || {Name, Value} <- maps:to_list(Faults)],
    ["set ", atom_to_list(Way), Named].
