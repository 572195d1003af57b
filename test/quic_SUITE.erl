%%% Connections of `macula_quic': dialling, what they tell of themselves, how they end, to whom they
%%% belong. Both ends are ours, on loopback.
-module(quic_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
%% Of what a machine that stands still may spoil.
-define(TRIES, 10).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        connects_to_a_host_by_every_form_of_its_name,
        a_silent_address_ends_by_the_timeout,
        an_address_that_is_none_is_told_back,
        a_name_that_nobody_has_is_nxdomain,
        a_server_of_another_version_is_told,
        peers_without_a_protocol_in_common_do_not_talk,
        the_protocol_agreed_on_is_the_clients_first_that_the_server_knows,
        an_unknown_option_is_refused_by_its_name,
        every_option_takes_its_bounds_and_refuses_what_lies_beyond,
        certificate_files_of_no_use_are_told_by_path_and_reason,
        a_handshake_is_over_when_a_connection_is_handed_out,
        each_end_knows_where_both_are,
        addresses_outlive_the_connection,
        traffic_counters_are_true,
        an_unknown_counter_is_an_error_and_not_zero,
        the_peers_close_arrives_with_its_code,
        closing_on_order_tells_the_owner_when_it_is_done,
        closing_oneself_is_silent_here_and_seen_there,
        a_vanished_peer_is_noticed_by_the_idle_timeout,
        keep_alives_hold_an_idle_connection,
        a_peer_without_stream_credit_makes_openers_wait,
        who_dies_while_he_waits_for_a_stream_takes_no_credit,
        waiting_for_a_stream_of_a_lost_connection_ends,
        a_connection_that_is_over_says_so_to_every_call,
        a_connection_goes_to_its_new_owner,
        an_end_during_a_handover_reaches_the_new_owner,
        only_the_owner_gives_a_connection_away,
        the_owners_death_closes_a_connection,
        an_owner_that_dies_while_it_is_given_a_connection_takes_it_along,
        closing_twice_is_fine,
        closing_what_is_no_handle_is_fine,
        what_is_no_handle_is_badarg
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%%% Dialling

%% Callers hold hosts as strings, binaries and tuples, of both families.
connects_to_a_host_by_every_form_of_its_name(_Config) ->
    {ok, Listener} = macula_quic:listen(0, quic_ct:server_options()),
    {ok, {_, Port}} = macula_quic:sockname(quic_ct:keep(Listener)),
    Hosts = [
        "localhost",
        <<"localhost">>,
        "127.0.0.1",
        <<"127.0.0.1">>,
        {127, 0, 0, 1},
        "::1",
        <<"[::1]">>,
        {0, 0, 0, 0, 0, 0, 0, 1}
    ],
    [?assertMatch({Host, {ok, _}}, {Host, dial(Host, Port, [])}) || Host <- Hosts].

%% A port that is open and silent says nothing: only the deadline ends a dial to it.
a_silent_address_ends_by_the_timeout(_Config) ->
    {Address, Port} = mesh_peer:silent(),
    %% Nothing else ends it before the test's own time is over.
    Options = [{Key, 3_600_000} || Key <- [idle_timeout_ms, handshake_idle_timeout_ms]],
    {Us, Result} = timer:tc(fun() -> macula_quic:connect(Address, Port, Options, 300) end),
    ?assertEqual({error, timeout}, Result),
    ?assert(Us >= 300_000).

%% A caller's mistake must not look like an unreachable host.
an_address_that_is_none_is_told_back(_Config) ->
    [
        ?assertEqual({error, {bad_address, {Host, Port}}}, dial(Host, Port, []))
     || {Host, Port} <- [
            {"no host", 1},
            {"", 1},
            {nowhere, 1},
            {{127, 0, 0}, 1},
            {{256, 0, 0, 1}, 1},
            {"localhost", 0},
            {"localhost", 65_536},
            {"localhost", 65_536 + 4_433},
            {{1, 0, 0, 0, 0, 0, 0, 65_536}, 1},
            {"localhost", -1}
        ]
    ].

%% Told apart from a timeout, since trying again will not help.
a_name_that_nobody_has_is_nxdomain(_Config) ->
    ?assertEqual({error, nxdomain}, dial("nobody.invalid", 4433, [])).

%% Trying again will not help here, either. Version Negotiation: RFC 9000, section 17.2.1.
a_server_of_another_version_is_told(_Config) ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Socket),
    Agent = quic_ct:agent(),
    Dialling = quic_ct:tell(Agent, fun() -> dial({127, 0, 0, 1}, Port, []) end),
    {ok, {Address, From, Initial}} = gen_udp:recv(Socket, 0, ?WAIT_MS),
    <<_, 1:32, S1, Server:S1/binary, S2, Client:S2/binary, _/binary>> = Initial,
    %% The only version that it has is one that is reserved for never being used.
    Answer = <<16#80, 0:32, S2, Client/binary, S1, Server/binary, 16#1a2a3a4a:32>>,
    ok = gen_udp:send(Socket, Address, From, Answer),
    receive
        {Dialling, Result} -> ?assertEqual({error, version_mismatch}, Result)
    after ?WAIT_MS -> error(never_told)
    end.

%% TLS alert 120, no_application_protocol (RFC 7301): the wrong service answered.
peers_without_a_protocol_in_common_do_not_talk(_Config) ->
    Listener = quic_ct:listen([{alpn, ["one", <<"two">>]}]),
    {ok, {Address, Port}} = macula_quic:sockname(Listener),
    ?assertEqual({error, {tls_alert, 120}}, dial(Address, Port, [{alpn, ["three"]}])),
    ?assertEqual({error, {tls_alert, 120}}, dial(Address, Port, [])),
    ?assertMatch({ok, _}, dial(Address, Port, [{alpn, ["three", "two"]}])).

%% Old and new nodes find the newest protocol that both speak.
the_protocol_agreed_on_is_the_clients_first_that_the_server_knows(_Config) ->
    Listener = quic_ct:listen([{alpn, ["new", "old"]}]),
    [
        begin
            {ok, Listener} = macula_quic:async_accept(Listener, []),
            _Client = quic_ct:connect(Listener, [{alpn, Offered}]),
            ?assertMatch(#{alpn := Expected}, new_conn())
        end
     || {Offered, Expected} <- [{["new", "old"], <<"new">>}, {["old"], <<"old">>}]
    ].

%%% Options

%% A misspelt option that is ignored is a security hole or a lost afternoon.
an_unknown_option_is_refused_by_its_name(_Config) ->
    Both = [fun listen_with/1, fun connect_with/1],
    [
        ?assertEqual({error, Reason}, With([Option]))
     || With <- Both,
        {Option, Reason} <- [
            {{verifi, peer}, {unknown_option, verifi}},
            {{"verify", peer}, {unknown_option, "verify"}},
            {{<<"verify">>, peer}, {unknown_option, <<"verify">>}},
            {verify, {unknown_option, verify}},
            {{verify, peer, 1}, {unknown_option, {verify, peer, 1}}}
        ]
    ],
    [?assertEqual({error, {bad_options, rest}}, With(rest)) || With <- Both],
    [?assertEqual({error, {bad_options, rest}}, With([{depth, 1} | rest])) || With <- Both].

%% What a number may be is stated, and one beyond it is a mistake in the unit.
every_option_takes_its_bounds_and_refuses_what_lies_beyond(_Config) ->
    Mib = 1_048_576,
    Hour = 3_600_000,
    Bounds = [
        {idle_timeout_ms, 100, Hour},
        {keep_alive_interval_ms, 0, Hour - 1},
        {handshake_idle_timeout_ms, 1, Hour},
        {peer_bidi_stream_count, 0, 65_536},
        {peer_unidi_stream_count, 0, 65_536},
        {max_frame_bytes, 8, 4_096 * Mib},
        {max_unfinished_bytes, 65_536, 65_536 * Mib},
        {receive_window_bytes, 65_536, 1_024 * Mib},
        {udp_buffer_bytes, 65_536, 1_024 * Mib},
        {backlog, 1, 65_536},
        {max_connections, 1, 1_000_000},
        {max_connections_per_address, 1, 1_000_000},
        {max_handshakes, 1, 65_536},
        {max_handshakes_per_address, 1, 65_536},
        {retry_above_handshakes, 0, 65_536}
    ],
    [assert_bounds(Key, Least, Most) || {Key, Least, Most} <- Bounds],
    Other = [
        {alpn, [[], [""], [string:copies("a", 256)], "macula", [1], macula, ["a" | "b"]]},
        {verify, [true, 1, {spki_sha256, <<1:248>>}, {spki_sha256, "x"}, {node_id, rsa}, {a, b}]},
        {depth, [-1, one]},
        {server_name_indication, [1, enable, [-1]]},
        {cert, [1, [1], ""]},
        {key, [1, {a, b}, ""]},
        {certfile, [1, "", <<>>, [-1]]},
        {keyfile, [1, "", <<>>]},
        {cacertfile, [1, "", <<>>]}
    ],
    [assert_refused(Key, Value) || {Key, Values} <- Other, Value <- Values],
    ?assertMatch({ok, _}, listen_with([{alpn, [string:copies("a", 255)]}, {depth, 0}])),
    %% A keep-alive that comes after the end keeps nothing alive.
    assert_refused(keep_alive_interval_ms, 60_000),
    Late = [{idle_timeout_ms, 1_000}, {keep_alive_interval_ms, 1_000}],
    ?assertEqual({error, {bad_option, keep_alive_interval_ms, 1_000}}, listen_with(Late)),
    ?assertMatch({ok, _}, listen_with([{idle_timeout_ms, 1_000}])).

assert_bounds(Key, Least, Most) ->
    Also = [{idle_timeout_ms, 3_600_000} || Key =:= keep_alive_interval_ms],
    [?assertMatch({_, {ok, _}}, {Key, listen_with([{Key, V} | Also])}) || V <- [Least, Most]],
    Beyond = [Least - 1, Most + 2, -1, 1 bsl 64, 1.0, one, "1", <<"1">>],
    [assert_refused(Key, Value) || Value <- Beyond].

assert_refused(Key, Value) ->
    [
        ?assertEqual({error, {bad_option, Key, Value}}, With([{Key, Value}]))
     || With <- [fun listen_with/1, fun connect_with/1]
    ].

%% Whoever installs certificates learns which file is wrong, and how.
certificate_files_of_no_use_are_told_by_path_and_reason(Config) ->
    Dir = proplists:get_value(priv_dir, Config),
    Path = fun(Name) -> filename:join(Dir, Name) end,
    {Cert, Key} = quic_certs:self_signed(Path("fit")),
    {_, OtherKey} = quic_certs:self_signed(Path("other")),
    ok = file:write_file(Path("text"), <<"text">>),
    ok = file:write_file(Path("broken"), <<"-----BEGIN CERTIFICATE-----\n*\n">>),
    Bad = fun(File, Why) -> {error, {bad_certificate, iolist_to_binary(File), Why}} end,
    [
        ?assertEqual(Expected, macula_quic:listen({{127, 0, 0, 1}, 0}, Options))
     || {Options, Expected} <- [
            {[], {error, no_certificate}},
            {[{cert, quic_certs:der(Cert)}], {error, no_certificate}},
            {[{certfile, Path("none")}, {keyfile, Key}], Bad(Path("none"), enoent)},
            {[{certfile, Cert}, {keyfile, Path("none")}], Bad(Path("none"), enoent)},
            {[{certfile, Path("text")}, {keyfile, Key}], Bad(Path("text"), no_certificate)},
            {[{certfile, Path("broken")}, {keyfile, Key}], Bad(Path("broken"), not_pem)},
            {[{certfile, Cert}], Bad(Cert, no_private_key)},
            {[{certfile, Cert}, {keyfile, OtherKey}], Bad(OtherKey, key_mismatch)},
            {[{cert, quic_certs:der(Cert)}, {key, <<1>>}], Bad("key", invalid_key)},
            {quic_ct:server_options([{verify, peer}, {cacertfile, Path("none")}]),
                Bad(Path("none"), enoent)}
        ]
    ],
    %% A name that is no UTF-8.
    Latin1 = filename:join(Dir, <<"fit-", 16#e9>>),
    {ok, _} = file:copy(Cert, Latin1),
    ?assertMatch({ok, _}, listen_with([{certfile, Latin1}, {keyfile, Key}])),
    Ders = [{cert, quic_certs:der(Cert)}, {key, quic_certs:key_der(Key)}],
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, Ders),
    _ = quic_ct:connect(Listener),
    ?assertEqual({error, no_certificate}, macula_quic:reload_certificates(Listener)).

%%% Facts

%% Event-style nodes call handshake/1 on each new connection before they use it.
a_handshake_is_over_when_a_connection_is_handed_out(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [?assertEqual({ok, C}, macula_quic:handshake(C)) || C <- [Client, Server]].

%% Logs and access rules of a node go by addresses.
each_end_knows_where_both_are(_Config) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    {Near, Far} = quic_ct:streams(Client, Server),
    {ok, {{127, 0, 0, 1}, Port} = Door} = macula_quic:sockname(Listener),
    ?assert(Port > 0),
    {ok, {_, ClientPort}} = macula_quic:sockname(Client),
    [
        begin
            ?assertEqual({ok, Door}, macula_quic:peername(C)),
            ?assertMatch({ok, {_, ClientPort}}, macula_quic:sockname(C)),
            ?assertEqual({ok, {{127, 0, 0, 1}, ClientPort}}, macula_quic:peername(S)),
            ?assertEqual({ok, Door}, macula_quic:sockname(S))
        end
     || {C, S} <- [{Client, Server}, {Near, Far}]
    ].

%% A log line about a closed connection still says whose it was.
addresses_outlive_the_connection(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {ok, Peer} = macula_quic:peername(Server),
    {ok, Own} = macula_quic:sockname(Server),
    ok = macula_quic:close(Client),
    {shutdown, 0} = quic_ct:next(Server),
    ?assertEqual({{ok, Peer}, {ok, Own}}, {
        macula_quic:peername(Server), macula_quic:sockname(Server)
    }).

%% A counter that is made up keeps dashboards green while a node is dead.
traffic_counters_are_true(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    Keys = [send_cnt, recv_cnt, send_oct, recv_oct, send_pend],
    {ok, Before} = macula_quic:getstat(Client, Keys),
    ?assertEqual(Keys, [Key || {Key, _} <- Before]),
    {ok, FarBefore} = macula_quic:getstat(Server, Keys),
    Size = 300_000,
    ok = macula_quic:send(Near, binary:copy(<<7>>, Size)),
    _ = quic_ct:read(Far, Size),
    {ok, FarAfter} = macula_quic:getstat(Server, Keys),
    {ok, After} = macula_quic:getstat(Client, Keys),
    Sent = grown(send_oct, Before, After),
    ?assert(Sent >= Size andalso Sent < 2 * Size),
    ?assert(grown(recv_oct, FarBefore, FarAfter) >= Size),
    %% Of all times: when the first figures were taken, something was under way.
    ?assert(grown(recv_oct, [{recv_oct, 0}], FarAfter) =< grown(send_oct, [{send_oct, 0}], After)),
    ?assert(grown(send_cnt, Before, After) >= Size div 65_536),
    ?assert(grown(recv_cnt, Before, After) > 0),
    %% Nobody reads any more: what waits here is told, once all windows are full.
    mesh_wait:eventually(true, fun() ->
        ok = fill(Near, binary:copy(<<7>>, 100_000)),
        {ok, [{send_pend, Pending}]} = macula_quic:getstat(Client, [send_pend]),
        Pending > 900_000
    end),
    ?assertEqual({ok, []}, macula_quic:getstat(Client, [])),
    ok = macula_quic:close(Client),
    mesh_wait:eventually({error, closed}, fun() -> macula_quic:getstat(Client, Keys) end).

grown(Key, Before, After) ->
    proplists:get_value(Key, After) - proplists:get_value(Key, Before).

%% Never 0 for what is not counted.
an_unknown_counter_is_an_error_and_not_zero(_Config) ->
    {Client, _Server} = quic_ct:pair(),
    ?assertEqual(
        {error, {unknown_key, send_dvi}}, macula_quic:getstat(Client, [send_cnt, send_dvi])
    ).

%%% Ends

%% The code is how peers say why they go.
the_peers_close_arrives_with_its_code(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far, active, true),
    ok = macula_quic:async_shutdown_connection(Client, 0, 4711),
    ?assertEqual({shutdown, 4711}, quic_ct:next(Server)),
    ?assertEqual(
        {closed, #{is_app_closing => false, status => {closed_by_peer, 4711}}},
        quic_ct:next(Server)
    ),
    ?assertEqual(
        {stream_closed, #{
            is_conn_shutdown => true,
            is_shutdown_by_app => false,
            status => {closed_by_peer, 4711}
        }},
        quic_ct:next(Far)
    ),
    Gone = {error, {closed_by_peer, 4711}},
    ?assertEqual(Gone, macula_quic:send(Far, <<"late">>)),
    ?assertEqual(Gone, macula_quic:async_send(Far, <<"late">>)),
    ?assertEqual(Gone, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertEqual(Gone, macula_quic:open_stream(Server)),
    ?assertEqual({error, closed}, macula_quic:accept_stream(Server, ?WAIT_MS)),
    ?assertMatch({error, _}, macula_quic:recv(Near, ?WAIT_MS)).

%% An owner that closes with a code waits for the end before it goes on.
closing_on_order_tells_the_owner_when_it_is_done(_Config) ->
    {Client, _Server} = quic_ct:pair(),
    ok = macula_quic:async_shutdown_connection(Client, 0, 1),
    ?assertEqual({closed, #{is_app_closing => true, status => cancelled}}, quic_ct:next(Client)),
    quic_ct:none(Client).

%% Who closes needs no news of it; the other end does.
closing_oneself_is_silent_here_and_seen_there(_Config) ->
    [
        begin
            {Client, Server} = quic_ct:pair(),
            ok = Close(Client),
            ?assertEqual({shutdown, 0}, quic_ct:next(Server)),
            ?assertMatch({closed, _}, quic_ct:next(Server)),
            quic_ct:none(Client),
            ?assertEqual({error, cancelled}, macula_quic:open_stream(Client))
        end
     || Close <- [fun macula_quic:close/1, fun macula_quic:close_connection/1]
    ].

%% A power cut sends no farewell.
a_vanished_peer_is_noticed_by_the_idle_timeout(_Config) ->
    Peer = mesh_peer:start(),
    {Address, Port} = mesh_peer:address(Peer),
    Options = [{idle_timeout_ms, 500}, {keep_alive_interval_ms, 100}],
    {ok, Connection} = macula_quic:connect(Address, Port, Options, ?WAIT_MS),
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = macula_quic:setopt(Stream, active, true),
    ok = mesh_peer:kill(Peer),
    ?assertEqual(
        {transport_shutdown, #{is_app_closing => false, status => idle_timeout}},
        quic_ct:next(Connection)
    ),
    ?assertEqual(
        {closed, #{is_app_closing => false, status => idle_timeout}}, quic_ct:next(Connection)
    ),
    ?assertMatch(
        {stream_closed, #{is_conn_shutdown := true, status := idle_timeout}}, quic_ct:next(Stream)
    ).

%% Idle is the usual state of a mesh connection; NATs and timeouts forget the silent. A machine that
%% stands still for most of a second loses one that is kept alive, but not each.
keep_alives_hold_an_idle_connection(_Config) ->
    Short = {idle_timeout_ms, 1_000},
    Listener = quic_ct:listen([Short, {keep_alive_interval_ms, 0}]),
    Outlives = fun(_Try) -> outlives_two_that_are_not_kept(Listener, Short) end,
    ?assert(lists:any(Outlives, lists:seq(1, ?TRIES))).

%% One after the other: were it not kept, it would end at about the time of the first.
outlives_two_that_are_not_kept(Listener, Short) ->
    Kept = quic_ct:connect(Listener, [Short]),
    [
        begin
            Lost = quic_ct:connect(Listener, [Short, {keep_alive_interval_ms, 0}]),
            ?assertMatch({transport_shutdown, #{status := idle_timeout}}, quic_ct:next(Lost))
        end
     || _ <- [1, 2]
    ],
    case macula_quic:open_stream(Kept) of
        {ok, _} -> true;
        {error, idle_timeout} -> false
    end.

%% Credit is the peer's protection; an opener that is refused instead would lose its request.
a_peer_without_stream_credit_makes_openers_wait(_Config) ->
    {Client, Server} = quic_ct:pair([{peer_bidi_stream_count, 1}], []),
    {Near, Far} = quic_ct:streams(Client, Server),
    Agent = quic_ct:agent(),
    Opening = quic_ct:tell(Agent, fun() -> macula_quic:open_stream(Client) end),
    mesh_wait:eventually({status, waiting}, fun() -> process_info(Agent, status) end),
    [ok = macula_quic:close(Stream) || Stream <- [Near, Far]],
    receive
        {Opening, Result} -> ?assertMatch({ok, _}, Result)
    after ?WAIT_MS -> error(never_opened)
    end.

%% Credit spent on the dead is a stream that begins and ends with nothing in it, and until it comes
%% each of them is a task.
who_dies_while_he_waits_for_a_stream_takes_no_credit(Config) ->
    %% The runtime's tasks are counted: in a VM of its own, where no other test's come to their end.
    Own = [lists:keyfind(priv_dir, 1, Config)],
    mesh_vm:with(fun(Vm) -> ok = mesh_vm:call(Vm, ?MODULE, who_dies_takes_no_credit, [Own]) end).

who_dies_takes_no_credit(Config) ->
    _ = quic_ct:certificates(Config),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    {Client, Server} = quic_ct:pair([{peer_bidi_stream_count, 1}], []),
    {Near, Far} = quic_ct:streams(Client, Server),
    Before = runtime_tasks(Pool),
    Agents = [quic_ct:agent() || _ <- lists:seq(1, 50)],
    [quic_ct:tell(Agent, fun() -> macula_quic:open_stream(Client) end) || Agent <- Agents],
    mesh_wait:eventually(true, fun() -> runtime_tasks(Pool) >= Before + 50 end),
    lists:foreach(fun quic_ct:give_up/1, Agents),
    mesh_wait:eventually(true, fun() -> runtime_tasks(Pool) =< Before end),
    [ok = macula_quic:close(Stream) || Stream <- [Near, Far]],
    {ok, Next} = macula_quic:open_stream(Client),
    ok = macula_quic:send(Next, quic_ct:frame(<<"next">>)),
    {ok, Arrived} = macula_quic:accept_stream(Server, ?WAIT_MS),
    ?assertEqual({ok, quic_ct:frame(<<"next">>)}, macula_quic:recv(Arrived, ?WAIT_MS)),
    ok = macula_gateway_mesh:stop(Pool).

runtime_tasks(Pool) ->
    {ok, #{runtime_tasks := Tasks}} = macula_gateway_mesh:get_stats(Pool),
    Tasks.

%% A server process that waits for requests must learn that none will come.
waiting_for_a_stream_of_a_lost_connection_ends(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Agent = quic_ct:agent(),
    Accepting = quic_ct:tell(Agent, fun() -> macula_quic:accept_stream(Server, infinity) end),
    mesh_wait:eventually({status, waiting}, fun() -> process_info(Agent, status) end),
    ok = macula_quic:close(Client),
    receive
        {Accepting, Result} -> ?assertEqual({error, closed}, Result)
    after ?WAIT_MS -> error(never_told)
    end.

%% An event-style handler that asked for one more stream would otherwise wait for good.
a_connection_that_is_over_says_so_to_every_call(_Config) ->
    {Client, Server} = quic_ct:pair(),
    ok = macula_quic:async_shutdown_connection(Client, 0, 9),
    [{closed, _}, {shutdown, 9}, {closed, _}] = [quic_ct:next(C) || C <- [Client, Server, Server]],
    [
        begin
            ?assertEqual({error, closed}, macula_quic:async_accept_stream(C, [])),
            ?assertEqual({error, closed}, macula_quic:accept_stream(C, ?WAIT_MS)),
            ?assertEqual({error, closed}, macula_quic:getstat(C, [send_cnt])),
            ?assertEqual({error, Why}, macula_quic:open_stream(C)),
            %% Nothing is left to be done, so these succeed.
            ?assertEqual({ok, C}, macula_quic:handshake(C)),
            ?assertEqual(ok, macula_quic:async_shutdown_connection(C, 0, 1)),
            ?assertEqual(ok, macula_quic:close_connection(C)),
            ?assertMatch({ok, _}, macula_quic:peername(C)),
            quic_ct:none(C)
        end
     || {C, Why} <- [{Client, cancelled}, {Server, {closed_by_peer, 9}}]
    ].

%%% Owners

%% Acceptors hand connections to their workers.
a_connection_goes_to_its_new_owner(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Agent = quic_ct:agent(),
    self() ! {quic, not_taken_yet, Server, 1},
    ok = macula_quic:controlling_process(Server, Agent),
    ok = macula_quic:async_shutdown_connection(Client, 0, 3),
    Told = quic_ct:in(Agent, fun() -> [quic_ct:next(Server) || _ <- [1, 2, 3]] end),
    ?assertMatch([{not_taken_yet, 1}, {shutdown, 3}, {closed, _}], Told),
    quic_ct:none(Server).

%% A worker that never hears of the end of its connection stays for good.
an_end_during_a_handover_reaches_the_new_owner(_Config) ->
    Listener = quic_ct:listen(),
    [
        begin
            Client = quic_ct:connect(Listener),
            Server = quic_ct:new_server(Listener),
            Agent = quic_ct:agent(),
            ok = macula_quic:async_shutdown_connection(Client, 0, N),
            ok = macula_quic:controlling_process(Server, Agent),
            Told = quic_ct:in(Agent, fun() -> [quic_ct:next(Server), quic_ct:next(Server)] end),
            ?assertMatch([{shutdown, N}, {closed, _}], Told),
            quic_ct:give_up(Agent)
        end
     || N <- lists:seq(1, 300)
    ].

%% Giving away what is somebody else's is an error that must not pass in silence.
only_the_owner_gives_a_connection_away(_Config) ->
    {Client, _Server} = quic_ct:pair(),
    Agent = quic_ct:agent(),
    Test = self(),
    Give = fun(To) -> fun() -> macula_quic:controlling_process(Client, To) end end,
    [?assertEqual({error, not_owner}, quic_ct:in(Agent, Give(To))) || To <- [Test, Agent]],
    ?assertEqual(ok, macula_quic:controlling_process(Client, self())),
    Dead = quic_ct:agent(),
    quic_ct:give_up(Dead),
    ?assertEqual({error, noproc}, macula_quic:controlling_process(Client, Dead)),
    %% It still belongs to the test.
    ok = macula_quic:controlling_process(Client, Agent),
    ?assertEqual({error, not_owner}, macula_quic:controlling_process(Client, Agent)).

%% A crashed handler must not leave connections behind.
the_owners_death_closes_a_connection(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Agent = quic_ct:agent(),
    ok = macula_quic:controlling_process(Client, Agent),
    ?assertMatch({ok, _}, macula_quic:open_stream(Client)),
    quic_ct:give_up(Agent),
    ?assertEqual({shutdown, 0}, quic_ct:next(Server)),
    ?assertMatch({error, _}, macula_quic:open_stream(Client)).

%% A worker may die at any moment, also at this one; connections that nobody owns would pile up.
an_owner_that_dies_while_it_is_given_a_connection_takes_it_along(_Config) ->
    Outcomes = [give_to_dying(N) || N <- lists:seq(1, 300)],
    ct:pal("given before its death: ~b", [length([ok || ok <- Outcomes])]),
    ?assert(lists:member(ok, Outcomes)).

%% A new connection each time it was given away.
give_to_dying(N) ->
    {Client, Server} = quic_ct:pair(),
    Dying = spawn(fun() -> lists:foldl(fun erlang:'+'/2, 0, lists:seq(1, N * 7 rem 500)) end),
    case macula_quic:controlling_process(Client, Dying) of
        ok ->
            ?assertEqual({shutdown, 0}, quic_ct:next(Server)),
            ok;
        {error, noproc} ->
            ok = macula_quic:close(Client)
    end.

%% Clean-up code closes what may be closed already.
closing_twice_is_fine(_Config) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    {Near, Far} = quic_ct:streams(Client, quic_ct:new_server(Listener)),
    [
        ?assertEqual([ok, ok], [macula_quic:close(Handle), macula_quic:close(Handle)])
     || Handle <- [Near, Far, Client, Listener]
    ].

%% Nor does it look whether there is a handle at all.
closing_what_is_no_handle_is_fine(_Config) ->
    [
        ?assertEqual(ok, macula_quic:close(Term))
     || Term <- [undefined, make_ref(), self(), <<>>, [], {stream, 1}]
    ].

%% A wrong term is a bug of the caller's, and crashes it.
what_is_no_handle_is_badarg(_Config) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    Calls = [
        fun(H) -> macula_quic:close_stream(H) end,
        fun(H) -> macula_quic:close_connection(H) end,
        fun(H) -> macula_quic:close_listener(H) end,
        fun(H) -> macula_quic:peername(H) end,
        fun(H) -> macula_quic:sockname(H) end,
        fun(H) -> macula_quic:send(H, <<>>) end,
        fun(H) -> macula_quic:recv(H, 0) end,
        fun(H) -> macula_quic:accept(H, 0) end,
        fun(H) -> macula_quic:accept_stream(H, 0) end,
        fun(H) -> macula_quic:open_stream(H) end,
        fun(H) -> macula_quic:getstat(H, []) end,
        fun(H) -> macula_quic:controlling_process(H, self()) end,
        fun(H) -> macula_quic:controlling_process(H, quic_ct:agent()) end
    ],
    [?assertError(badarg, Call(Term)) || Call <- Calls, Term <- [make_ref(), atom, <<>>]],
    ?assertError(badarg, macula_quic:accept(Client, 0)),
    ?assertError(badarg, macula_quic:open_stream(Listener)),
    ?assertError(badarg, macula_quic:send(Client, <<>>)),
    ?assertError(badarg, macula_quic:peername(Listener)).

%%% Internal

dial(Host, Port, Options) -> macula_quic:connect(Host, Port, Options, ?WAIT_MS).

listen_with(Options) when is_list(Options) ->
    Place = {{127, 0, 0, 1}, 0},
    case macula_quic:listen(Place, quic_ct:server_options() ++ Options) of
        {ok, Listener} -> {macula_quic:close(Listener), Listener};
        {error, Reason} -> {error, Reason}
    end;
listen_with(Options) ->
    macula_quic:listen({{127, 0, 0, 1}, 0}, Options).

connect_with(Options) ->
    macula_quic:connect({127, 0, 0, 1}, 1, Options, 0).

%% Sends until there is no more room.
fill(Stream, Data) ->
    case macula_quic:async_send(Stream, Data) of
        ok -> fill(Stream, Data);
        {error, send_queue_full} -> ok
    end.

new_conn() ->
    receive
        {quic, new_conn, Connection, Facts} ->
            {connected, Facts} = quic_ct:next(Connection),
            Facts
    after ?WAIT_MS -> error(no_connection)
    end.
