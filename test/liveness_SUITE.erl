%% Peers that die, stand still, restart or were never there: how the pool notices, and what becomes
%% of their messages. Each ends a real process or closes a real port.
-module(liveness_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    a_closed_port_is_refused_at_once/1,
    a_peer_that_restarts_resets_the_connections_of_the_one_before_it/1
]).

-define(POOL, macula_gateway_mesh).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        a_closed_port_is_refused_at_once,
        a_peer_that_restarts_resets_the_connections_of_the_one_before_it
    ].

init_per_suite(Config) ->
    Base = filename:join(proplists:get_value(priv_dir, Config), "node"),
    [{certificate, quic_certs:self_signed(Base)} | Config].

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> mesh_ct:end_test().

a_closed_port_is_refused_at_once(_Config) ->
    %% A node that is down while its machine is up need not cost every caller the whole time-out,
    %% which is a minute here.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => 60_000}),
    lists:foreach(
        fun(Ip) ->
            Port = closed_port(Ip),
            NodeId = term_to_binary(Ip),
            ?assertEqual(
                {error, {connect_failed, refused}},
                ?POOL:get_or_create_connection(Pool, NodeId, {Ip, Port})
            ),
            ?assertEqual({error, refused}, macula_quic:connect(Ip, Port, [], 60_000))
        end,
        [{127, 0, 0, 1}, {0, 0, 0, 0, 0, 0, 0, 1}]
    ),
    ?assertEqual(#{refused => 2}, mesh_ct:stat(dial_failures)).

a_peer_that_restarts_resets_the_connections_of_the_one_before_it(Config) ->
    %% A node that is restarted after a crash should get its messages at once, and not when the
    %% connections to its predecessor have run out of patience: here that takes a minute.
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 60_000}),
    {Vm, First} = start_node(Config, 0),
    Address = {{127, 0, 0, 1}, mesh_vm:call(Vm, old_node, port, [First])},
    {ok, Old} = ?POOL:get_or_create_connection(Pool, <<"node">>, Address),
    ok = macula_quic:send(Old, mesh_peer:frame(1, 8)),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(messages_delivered) =:= 1 end),
    ok = mesh_vm:kill(Vm),
    {Successor, Node} = start_node(Config, element(2, Address)),
    %% The question of the pool that the successor cannot understand.
    ok = macula_quic:send(Old, mesh_peer:frame(2, 8)),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(closes) =:= #{reset => 1} end),
    ?assertEqual({error, reset}, macula_quic:send(Old, <<"late">>)),
    ok = ?POOL:send_async(Pool, <<"node">>, Address, mesh_peer:frame(3, 8)),
    mesh_ct:poll_until(fun() -> notified(Successor, Node) =:= 1 end),
    mesh_ct:poll_until(fun() -> mesh_ct:stat(messages_delivered) =:= 2 end),
    ?assertEqual(1, mesh_ct:stat(messages_unconfirmed)),
    ok = peer:stop(Successor).

%%% Internal

%% A VM, and a node in it that listens at this port with the suite's certificate.
start_node(Config, Port) ->
    {CertFile, KeyFile} = proplists:get_value(certificate, Config),
    Vm = mesh_vm:start(),
    Options = [{certfile, CertFile}, {keyfile, KeyFile}],
    {ok, Node} = mesh_vm:call(Vm, old_node, start, [1_000, Port, Options]),
    {Vm, Node}.

closed_port(Ip) ->
    {ok, Socket} = gen_udp:open(0, [{ip, Ip}, family(Ip)]),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Port.

family(Ip) when tuple_size(Ip) =:= 4 -> inet;
family(_Ip) -> inet6.

notified(Vm, Node) ->
    maps:get(notifications, mesh_vm:call(Vm, old_node, counts, [Node]), 0).
