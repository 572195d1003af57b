%%% Dials: `--count' connections to nodes of their own, `--at-once' of them under way at a time;
%%% then they stay open and idle until the driver has looked at what they cost.
-module(bench_dial).

-export([pool/0, tcp/0]).

%% @doc By get_or_create_connection/3.
-spec pool() -> no_return().
pool() ->
    Options = bench_work:options(),
    Count = bench_work:option("count", Options),
    {ok, Pool} = macula_gateway_mesh:start_link(#{max_mesh_connections => Count}),
    Address = {{127, 0, 0, 1}, bench_work:option("to", Options)},
    run(Options, fun(Number) ->
        {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, <<Number:256>>, Address)
    end).

%% @doc By ssl:connect/3.
-spec tcp() -> no_return().
tcp() ->
    {ok, _} = application:ensure_all_started(ssl),
    Options = bench_work:options(),
    Port = bench_work:option("to", Options),
    run(Options, fun(_Number) -> bench_tcp:connect(Port) end).

%% Whoever dials stays: a socket of `ssl' closes with its owner.
run(Options, Dial) ->
    Count = bench_work:option("count", Options),
    AtOnce = bench_work:option("at-once", Options),
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    Self = self(),
    Begin = erlang:monotonic_time(microsecond),
    Dialer = fun(First) ->
        _ = [Dial(Number) || Number <- lists:seq(First, Count, AtOnce)],
        Self ! {self(), done},
        receive never -> ok end
    end,
    Dialers = [spawn_link(fun() -> Dialer(First) end) || First <- lists:seq(1, AtOnce)],
    _ = [receive {Pid, done} -> ok end || Pid <- Dialers],
    Us = erlang:monotonic_time(microsecond) - Begin,
    bench_work:say("made connections=~b seconds=~.6f", [Count, Us / 1.0e6]),
    ok = bench_work:expect("quit"),
    halt(0).
